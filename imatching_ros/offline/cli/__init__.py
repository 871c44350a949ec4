"""The commands of `python -m imatching_ros` that belong to no other room: each module has add_arguments(parser) and run(args)."""
