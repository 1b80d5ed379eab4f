-- Publishing for callers that need the id.

local function idempotency_key(prefix, channel, idempotency)
  return prefix .. IDEMPOTENCY .. redis.sha1hex(#channel .. ':' .. channel .. ':' .. idempotency)
end

-- Appends one event. If its idempotency key was used within the last five minutes, answers the id of that time. The key
-- names the publisher as well. It belongs to a payload: `digest` is that of this one. The stored value also has the
-- beginning of the channel's digest, which decides the partition if the deployment is moved to more partitions.
local function once(state, channel, payload, is_end, idempotency, digest)
  if not idempotency then
    return append_later(state, channel, payload, is_end)
  end
  local seen_key = idempotency_key(state.prefix, channel, idempotency)
  local seen = redis.call('GET', seen_key)
  if seen then
    if string.sub(seen, 1, #digest) ~= digest then
      return redis.error_reply('KEYREUSED this idempotency key came with another payload within the last five minutes')
    end
    return string.sub(seen, #digest + 9)
  end
  local id = append_later(state, channel, payload, is_end)
  if type(id) == 'string' then
    local of_channel = string.sub(redis.sha1hex(channel), 1, 8)
    redis.call('SET', seen_key, digest .. of_channel .. id, 'PX', 300000)
    trace(state, 'keys', seen_key)
  end
  return id
end

-- An error that clients of a Redis Cluster understand, if this node does not hold the keys of a partition.
local function elsewhere(prefix)
  -- While the slot is on its way to another node, Redis also refuses two keys of which one does not exist. No channel has
  -- this name.
  if type(redis.pcall('EXISTS', prefix .. CLOCK, prefix .. LOG .. '\0')) == 'number' then
    return nil
  end
  local slot, own = redis.call('CLUSTER', 'KEYSLOT', prefix), redis.call('CLUSTER', 'MYID')
  for _, range in ipairs(redis.call('CLUSTER', 'SLOTS')) do
    local master = range[3]
    if slot >= range[1] and slot <= range[2] and master[3] ~= own then
      return redis.error_reply('MOVED ' .. slot .. ' ' .. master[1] .. ':' .. master[2])
    end
  end
  return redis.error_reply('TRYAGAIN the keys are on their way to another node')
end

-- channel, payload [, idempotency key]: for every backend that can call a function
--
-- A client of a Redis Cluster finds the node by the keys, or follows the answer of a node that does not hold them. A
-- single Redis needs none.
local function publish(given, args)
  local channel, payload, idempotency = args[1], args[2], args[3]
  if not channel or not payload or #args > 3 then
    return redis.error_reply('ERR usage: FCALL sse_publish 0 <channel> <payload> [idempotency key]')
  end
  if #channel < 1 or #channel > 256 or string.find(channel, '%c')
    or string.find(channel, '\194[\128-\159]') or not is_utf8(channel) then
    return redis.error_reply('BADCHANNEL a channel name is 1 to 256 bytes of UTF-8 without control characters')
  end
  local reason, is_end = examine(payload)
  if reason then
    return redis.error_reply(reason)
  end
  local partition = tonumber(string.sub(redis.sha1hex(channel), 1, 8), 16) % PARTITIONS
  local prefix = PREFIXES[partition + 1]
  local keys = { prefix .. CLOCK, prefix .. PAST, prefix .. ENDS, prefix .. LOG .. channel, prefix .. IDS .. channel }
  local key = idempotency and idempotency ~= '' and 'FCALL:' .. idempotency or nil
  if key then
    keys[#keys + 1] = idempotency_key(prefix, channel, key)
  end
  -- First of all: a node that does not hold the keys cannot read them.
  if #given > 0 and table.concat(given, '\n') ~= table.concat(keys, '\n') then
    return redis.error_reply('BADKEYS the keys of this call are ' .. table.concat(keys, ' '))
  end
  local refused = #given == 0 and in_cluster ~= false and elsewhere(prefix)
  if refused then
    return refused
  end
  local state = load(keys)
  refused = is_shut(state) or not_ready(keys)
  if refused then
    return refused
  end
  tick(state, '0-0')
  local id = once(state, channel, payload, is_end, key, key and redis.sha1hex(payload))
  store(state)
  return id
end

-- replica, watermark, then per event: channel, payload, 1 if it is an end, and nothing or the payload's digest and an
-- idempotency key
--
-- For a replica, which has checked its events. Answers an id per event, '-' if it has none (yet), or '!' and the reason if
-- it is not appended.
local function append_all(keys, args)
  local state = load(keys)
  local refused = is_shut(state, args[1]) or not_ready(keys, args[1])
  if refused then
    return refused
  end
  tick(state, args[2])
  local ids = {}
  for i = 3, #args, 4 do
    -- A key that another program wrote to must not block the events of other channels.
    local digest, key = string.sub(args[i + 3], 1, 40), string.sub(args[i + 3], 41)
    local ok, id = pcall(once, state, args[i], args[i + 1], args[i + 2] == '1', key ~= '' and key or nil, digest)
    if not ok or type(id) == 'table' then
      id = '!' .. (type(id) == 'table' and id.err or tostring(id))
    end
    ids[#ids + 1] = id
  end
  store(state)
  return ids
end
