-- ARGV: ttl in ms; then of each '1' to terminate or '0', and its id.
local now = clock('')
local cursor = math.max(tonumber(call('GET', P .. 'u') or 0), now * 1000)
for index = 2, #ARGV, 2 do
  cursor = cursor + 1
  local wish = struct.pack('>dd', cursor, now + ARGV[1]) .. ARGV[index] .. ARGV[index + 1]
  call('ZADD', P .. 'v', string.format('%.0f', cursor), wish)
end
call('SET', P .. 'u', string.format('%.0f', cursor))
return 1
