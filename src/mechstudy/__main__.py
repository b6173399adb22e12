"""`python -m mechstudy`: the same as the `mechstudy` command."""

from mechstudy.cli import main

main()
