"""What the studies share: data sets, the paper's network, training, a result store and figures."""
