-- Reading: pages of history, attaches, and the newest ids.

-- Entries and facts as one text, made to be split without copying:
-- now clock horizon head expire more first count LF, then per entry: id prev length LF payload
--
-- `first` is the id of the channel's first event, 0-0 if it never had one, '-' if that is not known.
local function page(state, channel, entries, more)
  local out = {}
  for _, entry in ipairs(entries) do
    local prev, payload = '-', nil
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'prev' then
        prev = fields[i + 1]
      elseif fields[i] == 'payload' then
        payload = fields[i + 1]
      end
    end
    -- An entry that another program wrote is not an event, or has no predecessor.
    if not string.find(prev, '^%d+%-%d+!?$') then
      prev = '-'
    end
    if payload then
      out[#out + 1] = entry[1] .. ' ' .. prev .. ' ' .. #payload .. '\n' .. payload
    end
  end
  local ids_key = state.prefix .. IDS .. channel
  local head = redis.call('LINDEX', ids_key, -1)
  local expire = known(state, rule_of(channel).expire)
  local first = '-'
  if head then
    first = redis.call('LINDEX', ids_key, 0)
  elseif not is_doubtful(state, expire) and not redis.call('ZSCORE', state.prefix .. PAST, mark(channel)) then
    first = '0-0'
  end
  local facts = { string.format('%.0f', state.now), clock(state), state.horizon, head or '-',
    string.format('%.0f', expire), more and '1' or '0', first, tostring(#out) }
  return table.concat(facts, ' ') .. '\n' .. table.concat(out)
end

local function size(entry)
  local bytes = 64
  for _, field in ipairs(entry[2]) do
    bytes = bytes + #field
  end
  return bytes
end

-- Reads entries in steps until there are `max_entries`, or at least `at_least` entries and the next one would exceed
-- `max_bytes`. `step` makes the command that continues after an id. Returns whether there may be more, and how many
-- bytes were read, including entries that were left out.
--
-- The size of an entry is known only after it was copied. So the first step reads one entry. Each further step reads no
-- more entries than there were before it, and no more than fit if they are of the same size.
local function read(command, step, at_least, max_entries, max_bytes)
  local entries, bytes = {}, 0
  while true do
    local count = math.min(16, #entries + 1, max_entries - #entries)
    if bytes > 0 then
      count = math.min(count, math.ceil((max_bytes - bytes) * #entries / bytes))
    end
    command[#command + 1], command[#command + 2] = 'COUNT', count
    local found, fits = redis.call(unpack(command)), true
    for _, entry in ipairs(found) do
      bytes = bytes + size(entry)
      fits = fits and (bytes <= max_bytes or #entries < at_least)
      if fits then
        entries[#entries + 1] = entry
      end
    end
    if fits and #found < count then
      return entries, false, bytes
    end
    if not fits or #entries >= max_entries or (bytes >= max_bytes and #entries >= at_least) then
      return entries, true, bytes
    end
    command = step('(' .. found[#found][1])
  end
end

-- Steps of a read that begins with the newest entry.
local function older_in(log)
  return function(before)
    return { 'XREVRANGE', log, before, '-' }
  end
end

-- replica, watermark, beginning of the run id of this server, name of this call, per channel: entries at least, entries
-- at most, bytes at most; then channels
--
-- The answer is published on the caller's answer channel. There it arrives after every event that it already contains,
-- and before every later one. Its last message names the call. The answer may lack channels, because those before them
-- were large. The caller asks for them again.
local function attach(keys, args)
  local replica, watermark, run_part, call = args[1], args[2], args[3], args[4]
  local at_least, max_entries, max_bytes = tonumber(args[5]), tonumber(args[6]), tonumber(args[7])
  local state = load(keys)
  if is_library then
    local refused = not_ready(keys, replica)
    if refused then
      return refused
    end
    tick(state, watermark)
  elseif is_behind(state, watermark) then
    return redis.error_reply(BEHIND)
  end
  local answers = state.prefix .. ANSWERS .. run_part .. replica
  local copied = 0
  local function newest_page(channel)
    local log = state.prefix .. LOG .. channel
    local older = older_in(log)
    local newest_first, _, bytes = read(older('+'), older, at_least, max_entries, max_bytes)
    copied = copied + bytes + ENTRY_COST * #newest_first
    local entries = {}
    for e = #newest_first, 1, -1 do
      entries[#entries + 1] = newest_first[e]
    end
    return page(state, channel, entries, #entries < redis.call('XLEN', log))
  end
  for i = 8, #args do
    local channel = args[i]
    -- A key that another program wrote to must not block other channels.
    local ok, answer = pcall(newest_page, channel)
    redis.call('SPUBLISH', answers, channel .. '\n' .. (ok and answer or '!'))
    if copied >= CALL_BYTES then
      break
    end
  end
  local facts = call .. ' ' .. clock(state) .. ' ' .. state.horizon .. (state.phase == 'moved' and ' moved' or '')
  redis.call('SPUBLISH', answers, '\n' .. facts)
  return clock(state)
end

-- watermark, channel, after, entries at most, bytes at most
local function history(keys, args)
  local watermark, channel, after, max_entries, max_bytes =
    args[1], args[2], args[3], tonumber(args[4]), tonumber(args[5])
  local state = load(keys)
  if is_library then
    if not state.ms then
      handshaken[keys[1]] = nil
    end
    local refused = not_ready(keys)
    if refused then
      return refused
    end
  elseif is_behind(state, watermark) then
    return redis.error_reply(BEHIND)
  end
  -- A client sends the cursor, which may be newer than any id that Redis accepts.
  if is_behind(state, after) then
    return page(state, channel, {}, false)
  end
  local log = state.prefix .. LOG .. channel
  local function newer(than)
    return { 'XRANGE', log, than, '+' }
  end
  local entries, more = read(newer('(' .. after), newer, 1, max_entries, max_bytes)
  return page(state, channel, entries, more)
end

-- channel, count: the ids of its newest events, oldest first
local function newest(keys, args)
  local key = string.sub(keys[1], 1, -1 - #CLOCK) .. IDS .. args[1]
  local ids = redis.call('LRANGE', key, -tonumber(args[2]), -1)
  if ids[1] == '-' then
    table.remove(ids, 1)
  end
  return ids
end
