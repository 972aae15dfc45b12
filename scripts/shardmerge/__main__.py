"""``python -m shardmerge`` is the command ``shardmerge``."""

from shardmerge.command.door import main

if __name__ == "__main__":
    main()
