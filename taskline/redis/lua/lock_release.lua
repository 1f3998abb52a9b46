-- ARGV: name, token, '1' if it was sent before. Answers whether this token held the lock.
if held and held[1] == token then
  call('HSET', name, 't', '', 'e', '0', 'r', token)
  call('PEXPIRE', name, DAY)
  wake(name)
  return 1
end
return ARGV[3] == '1' and call('HGET', name, 'r') == token and 1 or 0
