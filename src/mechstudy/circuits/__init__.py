"""Attribution graphs: linearised forward, direct-effect rows, pruning, faithfulness."""
