"""Training: one loop in plain torch, objectives that give named losses, checkpoints that continue exactly."""
