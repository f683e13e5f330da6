"""`zfkernels completion`: a script for the shell, made from the parser, that completes without starting Python."""

import argparse
import shlex
from collections.abc import Iterator
from typing import Any

EXAMPLES = """examples:
  zfkernels completion bash > ~/.local/share/bash-completion/completions/zfkernels
  zfkernels completion zsh >> ~/.zshrc
  zfkernels completion fish > ~/.config/fish/completions/zfkernels.fish
"""
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"  # zsh then runs the script for bash
BASH = """_zfkernels() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} program=${{COMP_WORDS[1]}} option= at=1 choices= i
    for ((i = 2; i < COMP_CWORD; i++)); do
        [[ ${{COMP_WORDS[i]}} == -* ]] && option=${{COMP_WORDS[i]}} at=$i
    done
    [[ $word == -* ]] && option=- at=$COMP_CWORD
    case "$program $option $((COMP_CWORD - at))" in  # the command, the last option, how many words ago it was
{cases}
    esac
    ((COMP_CWORD == 1)) && choices="{commands} --help --version"
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}}
complete -o default -F _zfkernels zfkernels"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The argument of `zfkernels completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that is to read the script")


def run(args: argparse.Namespace) -> int:
    """Prints the script; 0."""
    from ..cli import COMMANDS, parser

    groups = parser()._subparsers
    assert groups is not None
    commands: Any = groups._group_actions[0].choices
    if args.shell == "fish":
        print(*fish(commands, COMMANDS), sep="\n")
    else:
        script = BASH.format(cases="\n".join(bash_cases(commands)), commands=" ".join(commands))
        print((ZSH if args.shell == "zsh" else "") + script)
    return 0


def bash_cases(commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    """What can follow: the options of each command, the choices of each option. Where nothing is said, a file."""
    for name, command in commands.items():
        yield f'        "{name} - 0") choices="{" ".join(command._option_string_actions)}" ;;'
        for action in filter(lambda action: action.choices, command._actions):
            count = ' 1"' if action.nargs is None else ' "*'
            for option in action.option_strings or [""]:
                yield f'        "{name} {option}{count}) choices="{" ".join(action.choices or ())}" ;;'


def fish(commands: dict[str, argparse.ArgumentParser], summaries: dict[str, str]) -> Iterator[str]:
    """One line for each command, each option and each positional argument that has choices."""
    for name, command in commands.items():
        yield f"complete -c zfkernels -f -n __fish_use_subcommand -a {name} -d {shlex.quote(summaries[name])}"
        for action in command._actions:
            line = f"complete -c zfkernels -n '__fish_seen_subcommand_from {name}'"
            line += "".join(f" -l {option[2:]}" for option in action.option_strings if option.startswith("--"))
            if action.choices:
                line += f" -x -a {shlex.quote(' '.join(action.choices))}"
            elif action.nargs != 0:
                line += " -r"
            if action.option_strings or action.choices:
                yield f"{line} -d {shlex.quote((action.help or '') % vars(action))}"
