# Publishes to these channels in turn, until there is a file "stop".
require_relative "publish"

$stdout.sync = true

def one(channel, number)
  puts "#{channel} #{number} #{publish(channel, "ruby #{number}", "ruby #{number}")}"
  sleep 0.01
end

number = 0
until File.exist?("stop")
  ARGV.each { |channel| one(channel, number) }
  number += 1
end
one(ARGV[0], number - 1)
