module devloop.test/tools

// Two small programs on the standard library alone.
go 1.24
