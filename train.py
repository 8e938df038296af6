"""Train a Transformer: python train.py --task copy."""

from jaxformer.programs.train import main

if __name__ == "__main__":
    main()
