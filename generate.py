"""Decode with a trained Transformer: python generate.py --beam 4."""

from jaxformer.programs.generate import main

if __name__ == "__main__":
    main()
