-- The handshake of a replica, which shows whether events were lost.

-- A server gets another replication id when it becomes a copy, and again when it is promoted.
local function replication_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

-- number of the failover by which another server became the master
--
-- From now on this server refuses appends and reads until a replica completes the handshake with it. It accepts a
-- handshake only with the number of a later failover, or after it has been a copy and was promoted. Otherwise replicas
-- that have not noticed the failover would continue to use it.
local function retire(_, args)
  local epoch = tonumber(args[1])
  if not retired or retired.epoch < epoch then
    retired, handshaken, handshakes = { epoch = epoch, id = replication_id() }, {}, 0
  end
  return 1
end

-- replica, run id, watermark, run id under which the watermark was seen, the present time by the clock of
-- the server that gave out the watermark; 1 if this server ran beside that one; number of the failover by which this
-- server is the master
--
-- A server that ran beside the master has replaced it. Replication is asynchronous: the master's last writes may be
-- lost without a trace if no replica has seen them.
--
-- The first replica that completes a handshake with a server that has lost events has not always seen the newest ids.
-- If the server's time is behind, ids continue from the time given here and a little more, not from the watermark. All
-- other replicas' watermarks are below that, so their clients do not see ids go back.
--
-- `base` is the clock when a replica first reached this server process. Newer ids that a replica saw under an earlier
-- process have been lost.
--
-- All recorders that were subscribed to the process before are out of sync here. Its in-sync marks and its lease are
-- deleted. So the first recorder that subscribes to this process records, and does not leave its messages to a later
-- one.
local function handshake(keys, args)
  local replica, run, watermark, watermark_run, expected, overlaps, epoch = unpack(args)
  expected = tonumber(expected)
  if retired and tonumber(epoch) <= retired.epoch and replication_id() == retired.id then
    return redis.error_reply('RETIRED another redis is the master')
  end
  retired = nil
  local stored = redis.call('HMGET', keys[1], 'run', 'base')
  local is_new = runs[keys[1]] ~= run
  this_run, runs[keys[1]] = run, run
  local state = load(keys)
  local base, lost = stored[2], false
  if state.ms then
    local watermark_ms, watermark_seq = parse(watermark)
    if stored[1] ~= run then
      base, lost = clock(state), watermark == '0-0' or overlaps == '1'
      -- This process may have been the master before.
      recording[keys[1]], interrupted_at[keys[1]], listeners[keys[1]] = nil, nil, nil
      appended[keys[1]], lost_at[keys[1]], raw[keys[1]] = nil, nil, nil
      if stored[1] then
        redis.call('DEL', state.prefix .. IN_SYNC, state.prefix .. LEASE)
      end
    end
    local base_ms, base_seq = parse(base)
    -- Once is enough: a replica that has seen no id newer than the horizon is already below it.
    local horizon_ms, horizon_seq = parse(state.horizon)
    if watermark_run ~= run and less(base_ms, base_seq, watermark_ms, watermark_seq)
      and not less(watermark_ms, watermark_seq, horizon_ms, horizon_seq) then
      lost = true
    end
  end
  local latest = expected + (is_new and LATENCY or 0)
  if (lost or is_behind(state, watermark)) and state.now < latest then
    watermark = text(expected + LATENCY, 0)
  end
  tick(state, watermark, lost)
  store(state)
  redis.call('HSET', keys[1], 'run', run, 'base', base or clock(state))
  note_rules(state)
  handshakes = handshakes + 1
  if handshakes > 10000 then
    handshaken, handshakes = {}, 0
  end
  handshaken[keys[1]] = handshaken[keys[1]] or {}
  handshaken[keys[1]][replica] = true
  return clock(state)
end
