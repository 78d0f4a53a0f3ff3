"""Make tables from records: group the results that compare, estimate differences, rank the methods, write the files."""
