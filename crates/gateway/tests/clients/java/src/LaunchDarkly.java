import com.launchdarkly.eventsource.ConnectStrategy;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.RetryDelayStrategy;
import com.launchdarkly.eventsource.background.BackgroundEventHandler;
import com.launchdarkly.eventsource.background.BackgroundEventSource;
import java.net.URI;
import java.util.concurrent.TimeUnit;
import okhttp3.Response;

class LaunchDarkly {
    static void shown(String url) throws InterruptedException {
        new BackgroundEventSource.Builder(
                new Handler() {
                    @Override
                    public void onMessage(String name, MessageEvent message) {
                        Main.event(message.getLastEventId(), message.getData());
                    }
                },
                new EventSource.Builder(URI.create(url))).build().start();
        stay();
    }

    static void recommended(String url) throws InterruptedException {
        ConnectStrategy strategy = ConnectStrategy.http(URI.create(url))
                // The time of three heartbeats.
                .readTimeout(24, TimeUnit.SECONDS)
                .clientBuilderActions(client -> client.addInterceptor(chain -> {
                    Response response = chain.proceed(chain.request());
                    // Otherwise the library would reconnect again and again.
                    if (response.code() == 204) {
                        Main.end();
                    }
                    if (response.code() >= 400 && response.code() < 500) {
                        Main.failed(response);
                    }
                    return response;
                }));
        new BackgroundEventSource.Builder(
                new Handler() {
                    @Override
                    public void onMessage(String name, MessageEvent message) {
                        Main.received(message.getLastEventId(), name, message.getData());
                    }
                },
                // By default the pause grows to 30 s.
                new EventSource.Builder(strategy)
                        .retryDelayStrategy(RetryDelayStrategy.defaultStrategy().maxDelay(5, TimeUnit.SECONDS)))
                .build().start();
        stay();
    }

    /** The library's threads are daemons, which do not keep the program running. */
    private static void stay() throws InterruptedException {
        Thread.currentThread().join();
    }

    abstract static class Handler implements BackgroundEventHandler {
        @Override
        public void onOpen() {}

        @Override
        public void onClosed() {}

        @Override
        public void onComment(String comment) {}

        @Override
        public void onError(Throwable error) {}
    }
}
