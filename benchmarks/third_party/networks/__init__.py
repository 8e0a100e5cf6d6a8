"""All networks of the table. Libraries are imported where a network is built, so that none is needed for the others."""

from benchmarks.third_party.networks import images, language, plain, science

NETWORKS = [*plain.NETWORKS, *language.NETWORKS, *images.NETWORKS, *science.NETWORKS]
