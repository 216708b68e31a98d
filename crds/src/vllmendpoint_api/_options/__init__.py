"""The options of the engine and the frontend that the operator sets or rejects, from every source."""
