"""The nerfstudio side, thin because everything else is usable without it.

`data/` reads a capture, `splat/` is nifi-splat, `nerfacto` is nifi-nerfacto, `restoration/` restores what either draws,
`distill/` trains them on restored views, and `repairs/` mends nerfstudio. `runs` opens what training left, for
`evaluation` and `run_pairs`. A run's config.yml names these modules, so they have public names.
"""
