"""How long tests wait for what should come about, whatever the machine: bounds that tell a hang, not a speed."""

# One step. Starting Ray, HAProxy and a replica took over 75 s, of usually 15, on two cores shared with other tests.
PATIENCE_S = 240.0
# A whole command of many steps; below pytest's own timeout, so that what it started can be ended.
RUN_PATIENCE_S = 500.0
