-- The functions of the library.

if not is_library then
  local reads = { ssegw_attach = attach, ssegw_history = history }
  return reads[table.remove(ARGV, 1)](KEYS, ARGV)
end

local always = { 'allow-oom' }
local reads = { 'no-writes' }
-- Also on a server that is a copy by now.
local anywhere = { 'no-writes', 'allow-stale' }
redis.register_function('ssegw_record', record)
redis.register_function('ssegw_append', append_all)
redis.register_function('sse_publish', publish)
redis.register_function { function_name = 'ssegw_retire', callback = retire, flags = anywhere }
redis.register_function { function_name = 'ssegw_process', callback = process, flags = anywhere }
redis.register_function { function_name = 'ssegw_handshake', callback = handshake, flags = always }
redis.register_function { function_name = 'ssegw_attach', callback = attach, flags = always }
redis.register_function { function_name = 'ssegw_subscribe', callback = subscribe, flags = reads }
redis.register_function { function_name = 'ssegw_listen', callback = listen, flags = always }
redis.register_function { function_name = 'ssegw_acquire', callback = acquire, flags = always }
redis.register_function { function_name = 'ssegw_renew', callback = renew, flags = always }
redis.register_function { function_name = 'ssegw_step_down', callback = step_down, flags = always }
redis.register_function { function_name = 'ssegw_release', callback = release, flags = always }
redis.register_function { function_name = 'ssegw_forsake', callback = forsake, flags = always }
redis.register_function { function_name = 'ssegw_republish', callback = republish, flags = always }
redis.register_function { function_name = 'ssegw_candidate', callback = candidacy, flags = always }
redis.register_function('ssegw_import', import)
redis.register_function('ssegw_relay', relay_all)
redis.register_function { function_name = 'ssegw_migrate', callback = migrate, flags = always }
redis.register_function { function_name = 'ssegw_export', callback = export, flags = reads }
redis.register_function { function_name = 'ssegw_history', callback = history, flags = reads }
redis.register_function { function_name = 'ssegw_newest', callback = newest, flags = reads }
