import sys

from problama_utils.evaluation.tables import main

if __name__ == "__main__":
    sys.exit(main())
