import sys

from problama_utils.training.run import main

if __name__ == "__main__":
    sys.exit(main())
