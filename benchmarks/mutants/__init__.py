"""How many small mistakes in the code the tests notice. `make mutants` tries some of them."""
