-- ARGV: the cursor. Answers with the new cursor and the wishes since, '1' or '0' and the id of each.
local now, answer = clock(''), {}
local cursor = call('GET', P .. 'u') or '0'
if tonumber(cursor) > tonumber(ARGV[1]) then
  for _, wish in ipairs(call('ZRANGEBYSCORE', P .. 'v', '(' .. ARGV[1], '+inf')) do
    local _, ends = struct.unpack('>dd', wish)
    if ends > now then answer[#answer + 1] = wish:sub(17) end
  end
end
return {cursor, answer}
