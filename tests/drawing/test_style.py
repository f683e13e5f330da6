"""What figures have in common."""

import pytest

from zfkernels.drawing import style

colors = pytest.importorskip("matplotlib.colors")


@pytest.mark.filterwarnings("error")
def test_names_in_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    figure = style.new_figure(2, 1)
    figure.suptitle("\u65e5\u672c\u8a9e")
    style.save(figure, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 0


def test_the_numbers_between_powers_of_ten_look_like_all_others():
    figure = style.new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([1, 2], [6e-4, 6e-3])
    axes.set_yscale("log")
    style.plain_axes(axes)
    figure.draw_without_rendering()
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    assert len([label for label in labels if label.get_text()]) > 3
    assert {(label.get_fontsize(), colors.to_hex(label.get_color())) for label in labels} == {(8, style.SOFT)}
    style.darken(figure)
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    assert {colors.to_hex(label.get_color()) for label in labels} == {style.NIGHT.soft}
