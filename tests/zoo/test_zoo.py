"""Real networks of other packages, three layers and three methods each, against the modified gradient in float64.

A few run always, where their packages are installed; all with `pytest tests/zoo --zoo` (minutes). Batch norms have
statistics that are nothing special; `table.py` prints the same comparison as a table.
"""

import pytest
from judged import verdicts
from networks import NETWORKS, QUICK

from zfkernels.testing.weights import pictures, randomised

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the packages


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(network, id=network.title, marks=() if network.title in QUICK else pytest.mark.zoo)
        for network in NETWORKS
    ],
)
def test_projections_equal_the_modified_gradient(network):
    if network.missing():
        pytest.skip(f"needs {network.missing()}: see CONTRIBUTING.md")
    images = pictures(network.size)
    wrong = [v for v in verdicts(randomised(network.make(), images), images, network.layers) if not v.right]
    assert not wrong


def test_the_zoo_is_large():
    assert len(NETWORKS) == len({network.title for network in NETWORKS}) >= 60
    assert set(QUICK) <= {network.title for network in NETWORKS}
    assert all(len(network.layers) == 3 for network in NETWORKS if not network.name.startswith("vit"))
