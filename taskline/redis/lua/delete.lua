-- ARGV: now, ids. Deletes those that nobody holds; answers with their numbers.
local now, deleted = clock(ARGV[1]), {}
for index = 2, #ARGV do
  local id = ARGV[index]
  local value = call('HGET', P .. 'm', id)
  if value then
    local queue, priority = queue_of(value), priority_of(value)
    local lease_end = call('ZSCORE', P .. 'e:' .. queue, id)
    if not lease_end or tonumber(lease_end) <= now then
      call('ZREM', P .. 'e:' .. queue, id)
      if call('ZREM', P .. 'd:' .. queue, id) + call('ZREM', lane('b', priority, queue), id) == 0 then
        call('LREM', lane('r', priority, queue), 1, id)
      end
      call('HDEL', P .. 'm', id)
      call('HDEL', P .. 'h', id)
      deleted[#deleted + 1] = index - 2
    end
  end
end
return deleted
