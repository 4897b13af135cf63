-- The accounts of one key: GCRA in level form, exact in integers below 2^53.
--
-- KEYS[1]  the key
-- ARGV     mode, n, least, then for each policy: id, price, drain, capacity, cells, shadow
--
-- A cell costs `price`, the level drains by `drain` a microsecond, and never exceeds `capacity`.
-- The value is "2:last", then ":id:price:drain:capacity:level" for each policy and each quota that
-- decided on the key for it; those that the caller does not know are kept. A key that is not there
-- owes nothing, so expiry loses nothing, and neither does a value that cannot be read: it is
-- written anew.
--
-- A quota judges the key as if it alone had always been in force: what is charged and given back
-- counts, in cells, by all accounts of the policy, and each drains at its own pace. A quota without
-- an account starts from the most cells that any other owes, at most its capacity; accounts that
-- did not decide are charged up to theirs.
--
--   take    grants as many of n requests as fit, or none if fewer than least would
--   charge  charges the cells whether they fit or not, up to a level of least times the capacity
--   refund  gives the cells back
--   owe     charges as much as `cells` says in parts of a cell, up to least times the capacity
--   raise   owes as much as that at least: for keys that were lost, by a node that remembers them
--   peek    changes nothing
--
-- Returns {granted, then for each policy: its level, how many of the requests it was charged for}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local mode, n, least = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local last, kept, changed = now, {}, false
local raw = redis.pcall('GET', KEYS[1])
if raw then
  local fields, readable = {}, type(raw) == 'string'
  if readable then
    for field in string.gmatch(raw, '[^:]+') do fields[#fields + 1] = field end
    readable = fields[1] == '2' and tonumber(fields[2]) and #fields % 5 == 2
  end
  for i = 3, readable and #fields or 0, 5 do
    local account = {}
    for j = 1, 4 do account[j] = tonumber(fields[i + j]) end
    readable = readable and #account == 4
    local accounts = kept[fields[i]] or {}
    kept[fields[i]], accounts[#accounts + 1] = accounts, account
  end
  if readable then last = tonumber(fields[2]) else kept, changed = {}, true end
end

-- A clock that was set back by up to a second stands still; one set back further starts anew.
local elapsed = now - last
if elapsed < 0 then
  if elapsed >= -1000000 then now = last else changed = true end
  elapsed = 0
end
for id, accounts in pairs(kept) do
  local owes = false
  for _, account in ipairs(accounts) do
    account[4] = math.max(0, account[4] - elapsed * account[2])
    owes = owes or account[4] > 0
  end
  -- Paid by all of them: from here on each starts anew.
  if not owes then kept[id] = nil end
end

local policies, granted = {}, n
for i = 4, #ARGV, 6 do
  local id, cells = ARGV[i], tonumber(ARGV[i + 4])
  local price, drain, capacity = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local accounts = kept[id] or {}
  kept[id] = accounts
  local own, carried = nil, 0
  for _, account in ipairs(accounts) do
    if account[1] == price and account[2] == drain and account[3] == capacity then own = account end
    carried = math.max(carried, math.ceil(account[4] / account[1] * price))
  end
  if not own then
    own = {price, drain, capacity, math.min(carried, capacity)}
    if mode ~= 'peek' and mode ~= 'refund' and cells > 0 then
      changed = changed or own[4] > 0
      -- Of more than four quotas the one that is paid off first makes room.
      if #accounts >= 4 then
        local first = 1
        for j, account in ipairs(accounts) do
          if account[4] / account[2] < accounts[first][4] / accounts[first][2] then first = j end
        end
        table.remove(accounts, first)
      end
      accounts[#accounts + 1] = own
    end
  end
  local fits = n
  if cells > 0 then
    fits = math.max(0, math.min(n, math.floor((capacity - own[4]) / (price * cells))))
  end
  local shadow = ARGV[i + 5] == '1'
  if not shadow then granted = math.min(granted, fits) end
  policies[#policies + 1] = {accounts, own, cells, fits}
end
if granted < least then granted = 0 end

local reply = {granted}
for _, policy in ipairs(policies) do
  local accounts, own, cells, fits = policy[1], policy[2], policy[3], policy[4]
  if mode == 'take' then
    fits = math.min(fits, granted)
    cells = cells * fits
  elseif mode == 'owe' or mode == 'raise' then
    cells = cells / own[1]
  elseif mode == 'peek' then
    cells = 0
  end
  for _, account in ipairs(accounts) do
    local price, capacity, level = account[1], account[3], account[4]
    local after, most = level, capacity
    if account == own and mode ~= 'take' then most = least * capacity end
    if mode == 'refund' then
      after = math.max(0, level - cells * price)
    elseif mode == 'raise' then
      after = math.max(level, math.min(math.ceil(cells * price), capacity))
    elseif cells > 0 then
      after = math.max(level, math.min(level + math.ceil(cells * price), most))
    end
    changed = changed or after ~= level
    account[4] = after
  end
  -- One that is only looked at has no account yet.
  if mode == 'refund' and #accounts == 0 then own[4] = 0 end
  reply[#reply + 1], reply[#reply + 2] = own[4], fits
end

if changed then
  local value, life = {string.format('2:%.0f', now)}, 0
  for id, accounts in pairs(kept) do
    local owes = false
    for _, account in ipairs(accounts) do owes = owes or account[4] > 0 end
    for _, account in ipairs(owes and accounts or {}) do
      local format = '%s:%.0f:%.0f:%.0f:%.0f'
      value[#value + 1] = string.format(format, id, account[1], account[2], account[3], account[4])
      life = math.max(life, math.ceil(account[4] / account[2] / 1000))
    end
  end
  if #value == 1 then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], table.concat(value, ':'), 'PX', string.format('%.0f', life + 1))
  end
end
return reply
