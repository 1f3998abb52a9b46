-- ARGV: ids. Answers with the number of letters that there were.
local number = 0
for _, id in ipairs(ARGV) do
  if drop_letter(id) then number = number + 1 end
end
return number
