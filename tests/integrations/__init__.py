"""With what others build on Ray: run by `make test-integrations`, in an environment that has it all."""
