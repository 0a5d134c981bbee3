"""`python -m vaegen_ray` is `vaegen`."""

from vaegen_ray.cli.main import main

main()
