"""How a network is trained: recipe, devices, one loop, the loss of every sample."""
