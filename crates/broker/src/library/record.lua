-- Recording raw messages, under the lease.

-- Gives an id to an event that is lost, because it was never recorded. The id becomes the newest of the channel and no
-- entry has it, so every cursor before it gets a gap. The published line makes readers that are up to date read the
-- history.
local function lose(state, channel)
  local rule = rule_of(channel)
  if rule.history == 0 then
    return '-'
  end
  local id = next_id(state)
  local expire = rule.expire + math.max(0, state.ms - state.now)
  local ids_key = state.prefix .. IDS .. channel
  note_id(state, channel, rule, id, not redis.call('LINDEX', ids_key, -1))
  redis.call('PEXPIRE', ids_key, expire)
  redis.call('PEXPIRE', state.prefix .. LOG .. channel, expire)
  trace(state, 'channels', channel)
  redis.call('SPUBLISH', state.prefix .. LIVE .. run_part .. channel, '- ' .. id .. '\n')
  return id
end

-- replica, watermark, token, number of this append, then per message: channel, payload, digest. With an empty channel
-- nothing is recorded and only the digest is published, as the recorder's position. A channel after the byte 0 is that of
-- a lost message. Of several in a row, the last takes an id for all. After the byte 1 it is that of an end, whose name is
-- the digest.
--
-- The recorder repeats an append whose reply was lost. It is carried out only once.
local function record(keys, args)
  if not tonumber(args[4]) or (#args - 4) % 3 ~= 0 then
    return redis.error_reply('ERR usage: ssegw_record replica watermark token number [channel payload digest]...')
  end
  local state = load(keys)
  local refused = not_ready(keys, args[1])
  if refused then
    return refused
  end
  if redis.call('GET', state.prefix .. LEASE) ~= args[3] or is_shut(state, args[1]) then
    return redis.error_reply('FENCED another recorder holds the lease')
  end
  -- An append that the recorder has given up may arrive after its repetition, and after later ones.
  local token, number = args[3], tonumber(args[4])
  local last = appended[state.key]
  if last and last.token == token and number <= last.number then
    return {}
  end
  appended[state.key] = { token = token, number = number }
  tick(state, args[2])
  local ids, digests, has_raw = {}, {}, false
  for i = 5, #args, 3 do
    local channel, payload = args[i], args[i + 1]
    digests[#digests + 1] = args[i + 2]
    if channel ~= '' then
      -- A key that another program wrote to must not block the messages after this one.
      local lost, is_end = string.byte(channel) == 0, string.byte(channel) == 1
      has_raw = has_raw or not is_end
      local ok, id
      if is_end then
        ok, id = pcall(append_end, state, string.sub(channel, 2), args[i + 2])
      elseif not lost then
        ok, id = pcall(append, state, channel, payload)
      elseif args[i + 3] == channel then
        ok, id = true, '-'
      else
        ok, id = pcall(lose, state, string.sub(channel, 2))
      end
      if not ok or type(id) == 'table' then
        if not lost and not is_end then
          live(state, channel, '-', '-', payload)
        end
        id = '!' .. (type(id) == 'table' and id.err or tostring(id))
      end
      ids[#ids + 1] = id
    end
  end
  store(state)
  recording[state.key] = true
  if #ids > 0 then
    appends[state.key], appender[state.key] = (appends[state.key] or 0) + 1, token
  end
  if raw[state.key] ~= this_run and has_raw then
    raw[state.key] = this_run
    redis.call('HSET', state.key, 'raw', this_run)
  end
  redis.call('SPUBLISH', state.prefix .. RECORDED .. run_part, table.concat(digests, ' '))
  return ids
end
