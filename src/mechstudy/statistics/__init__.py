"""Bootstrap, permutation and false discovery rates: numbers in, numbers out."""
