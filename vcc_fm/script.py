"""What the scripts that `accelerate launch` starts have in common: arguments, and errors by exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from rich.console import Console

from vcc_fm.errors import UserError
from vcc_fm.processes import process_state
from vcc_fm.recipe import Recipe, load_recipe


def script_main(description: str | None, action: Callable[[Recipe, Console], None]) -> int:
    """Run ``action`` on the recipe named on the command line; 0, or 2 for a user's error.

    Only the first process prints.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="path of the recipe")
    parser.add_argument("overrides", nargs="*", help="key.key=value")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    arguments = parser.parse_args()
    first = process_state().is_main_process
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        action(recipe, Console(quiet=arguments.quiet or not first))
    except UserError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        process_state().destroy_process_group()
    return 0
