"""Every benchmark, one after the other: `make bench`."""

from benchmarks import predictor, store

if __name__ == "__main__":
    predictor.main([])
    store.main([])
