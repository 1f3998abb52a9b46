-- ARGV: name, ''. Answers with the lease, or nothing.
return held
