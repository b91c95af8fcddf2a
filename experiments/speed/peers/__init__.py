"""The same network in other libraries' own layers: what auxseg is measured and checked against."""
