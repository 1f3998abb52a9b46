-- ARGV: ttl in ms or '', ids.
for index = 2, #ARGV do
  if ARGV[1] == '' then
    call('PERSIST', P .. 'o:' .. ARGV[index])
  else
    call('PEXPIRE', P .. 'o:' .. ARGV[index], ARGV[1])
  end
end
return 1
