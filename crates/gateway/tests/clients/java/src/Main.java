import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/**
 * Clients of the gateway with libraries for the JVM. Each library is used as its documentation shows, and as
 * docs/clients.md recommends.
 *
 * <pre>Main LIBRARY shown|recommended URL</pre>
 *
 * prints a line for each event with its id and the SHA-1 of its data. It prints "end" when it knows that the channel is
 * complete.
 */
class Main {
    interface Program {
        void run(String url) throws Exception;
    }

    public static void main(String[] args) throws Exception {
        String url = args[2];
        Program program = switch (args[0] + " " + args[1]) {
            case "okhttp shown" -> OkHttp::shown;
            case "okhttp recommended" -> OkHttp::recommended;
            case "okhttp-six shown" -> OkHttp::sixShown;
            case "okhttp-six recommended" -> OkHttp::sixRecommended;
            case "launchdarkly-java shown" -> LaunchDarkly::shown;
            case "launchdarkly-java recommended" -> LaunchDarkly::recommended;
            case "webclient shown" -> WebFlux::shown;
            case "webclient recommended" -> WebFlux::recommended;
            case "jersey shown" -> Jersey::shown;
            case "jersey recommended" -> Jersey::recommended;
            case "jvm publish" -> redis -> Publish.all(redis, args[3]);
            default -> throw new IllegalArgumentException(args[0] + " " + args[1]);
        };
        program.run(url);
    }

    static synchronized void event(String id, String data) {
        try {
            byte[] hash = MessageDigest.getInstance("SHA-1").digest(data.getBytes(StandardCharsets.UTF_8));
            System.out.println(id + "\t" + HexFormat.of().formatHex(hash));
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    static synchronized void end() {
        System.out.println("end");
        // exit would wait for shutdown hooks, which wait for the thread that calls this.
        Runtime.getRuntime().halt(0);
    }

    /** Ends the program after an error that the program as shown does not handle. */
    static void failed(Object why) {
        System.err.println(why);
        Runtime.getRuntime().halt(1);
    }

    /** Prints an event of the channel, and handles the gateway's own events. */
    static void received(String id, String name, String data) {
        if ("gateway.end".equals(name)) {
            end();
        }
        if (name == null || !name.startsWith("gateway.")) {
            event(id, data);
        }
    }
}
