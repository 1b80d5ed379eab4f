import io.lettuce.core.RedisClient;
import java.net.URI;
import java.util.LinkedHashMap;
import java.util.Map;
import org.redisson.Redisson;
import org.redisson.api.RedissonClient;
import org.redisson.client.codec.Codec;
import org.redisson.client.codec.StringCodec;
import org.redisson.codec.JsonJacksonCodec;
import org.redisson.codec.SerializationCodec;
import org.redisson.codec.TypedJsonJacksonCodec;
import org.redisson.config.Config;
import org.springframework.data.redis.connection.lettuce.LettuceConnectionFactory;
import org.springframework.data.redis.core.RedisTemplate;
import org.springframework.data.redis.core.StringRedisTemplate;
import org.springframework.data.redis.serializer.GenericJackson2JsonRedisSerializer;
import org.springframework.data.redis.serializer.Jackson2JsonRedisSerializer;
import org.springframework.data.redis.serializer.RedisSerializer;
import redis.clients.jedis.JedisPooled;

/** Publishes each kind of value with each library's default and its other serializers, each to its own channel. */
class Publish {
    interface Way {
        void publish(String channel, Object value) throws Exception;
    }

    private static String prefix;

    static void all(String url, String channels) throws Exception {
        prefix = channels;
        spring(URI.create(url));
        redisson(url);
        // These two accept only text. The compiler rejects all else.
        JedisPooled jedis = new JedisPooled(URI.create(url));
        texts("Jedis", (channel, value) -> jedis.publish(channel, (String) value));
        var lettuce = RedisClient.create(url).connect().sync();
        texts("Lettuce", (channel, value) -> lettuce.publish(channel, (String) value));
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    private static void spring(URI url) {
        LettuceConnectionFactory factory = new LettuceConnectionFactory(url.getHost(), url.getPort());
        factory.afterPropertiesSet();
        factory.start();
        StringRedisTemplate strings = new StringRedisTemplate(factory);
        each("StringRedisTemplate", strings::convertAndSend);
        each("RedisTemplate", template(factory, null)::convertAndSend);
        each("GenericJackson2JsonRedisSerializer", template(factory, new GenericJackson2JsonRedisSerializer())::convertAndSend);
        each("Jackson2JsonRedisSerializer", template(factory, new Jackson2JsonRedisSerializer<>(Object.class))::convertAndSend);
    }

    private static RedisTemplate<Object, Object> template(LettuceConnectionFactory factory, RedisSerializer<?> serializer) {
        RedisTemplate<Object, Object> template = new RedisTemplate<>();
        template.setConnectionFactory(factory);
        if (serializer != null) {
            template.setValueSerializer(serializer);
        }
        template.afterPropertiesSet();
        return template;
    }

    private static void redisson(String url) {
        Config config = new Config();
        config.useSingleServer().setAddress(url).setConnectionMinimumIdleSize(1).setConnectionPoolSize(2)
                .setSubscriptionConnectionMinimumIdleSize(0);
        RedissonClient client = Redisson.create(config);
        each("Redisson", (channel, value) -> client.getTopic(channel).publish(value));
        Map<String, Codec> codecs = new LinkedHashMap<>();
        codecs.put("StringCodec", StringCodec.INSTANCE);
        codecs.put("SerializationCodec", new SerializationCodec());
        codecs.put("JsonJacksonCodec", new JsonJacksonCodec());
        codecs.put("TypedJsonJacksonCodec", new TypedJsonJacksonCodec(Object.class));
        codecs.forEach((name, codec) -> each(name, (channel, value) -> client.getTopic(channel, codec).publish(value)));
    }

    private static void each(String publisher, Way way) {
        texts(publisher, way);
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("event", "price");
        map.put("data", 10);
        one(publisher, "object", map, way);
        one(publisher, "number", 42, way);
        one(publisher, "boolean", true, way);
    }

    private static void texts(String publisher, Way way) {
        one(publisher, "text", "hello", way);
        one(publisher, "envelope", "{\"event\":\"price\",\"data\":10}", way);
    }

    private static void one(String publisher, String kind, Object value, Way way) {
        String name = publisher + "." + kind;
        try {
            way.publish(prefix + name, value);
        } catch (Exception error) {
            System.out.println(name + "\trefused by the library");
        }
    }
}
