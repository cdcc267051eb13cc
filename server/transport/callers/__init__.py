"""Who calls, and how much each may hold: keys, connections, shares, and the pages and names that are let in."""
