"""A mask as a bipartite graph of inputs and outputs: degrees, neighbourhoods, spectra."""
