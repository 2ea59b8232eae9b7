"""`nifi-splat`: splatfacto with a compression stage and restored outputs."""
