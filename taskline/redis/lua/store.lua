-- ARGV: of each outcome its id, the outcome and its ttl in ms. Answers with the numbers refused.
local refused = {}
for index = 1, #ARGV, 3 do
  if not store(ARGV[index], ARGV[index + 1], ARGV[index + 2]) then
    refused[#refused + 1] = (index - 1) / 3
  end
end
return refused
