"""The device side: what an operator costs on this machine."""
