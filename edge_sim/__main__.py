"""`python -m edge_sim`: the fleet simulator's command line."""

from edge_sim.fleet_commands import main

if __name__ == "__main__":
    main()
