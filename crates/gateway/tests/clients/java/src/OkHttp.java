import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import okhttp3.Dispatcher;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.sse.EventSource;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;

class OkHttp {
    static void shown(String url) {
        OkHttpClient client = new OkHttpClient();
        Request request = new Request.Builder().url(url).build();
        EventSources.createFactory(client).newEventSource(request, new EventSourceListener() {
            @Override
            public void onEvent(EventSource source, String id, String type, String data) {
                Main.event(id, data);
            }

            @Override
            public void onClosed(EventSource source) {
                Main.failed("closed");
            }

            @Override
            public void onFailure(EventSource source, Throwable error, Response response) {
                Main.failed(error);
            }
        });
    }

    static void recommended(String url) {
        new Follower(client(), url).open();
    }

    static OkHttpClient client() {
        Dispatcher dispatcher = new Dispatcher();
        // A stream is a request. By default the sixth request to a host waits until one of five ends.
        dispatcher.setMaxRequestsPerHost(1000);
        dispatcher.setMaxRequests(1000);
        return new OkHttpClient.Builder()
                .dispatcher(dispatcher)
                // The time of three heartbeats.
                .readTimeout(24, TimeUnit.SECONDS)
                .build();
    }

    static void sixShown(String url) {
        six(new OkHttpClient(), url);
    }

    static void sixRecommended(String url) {
        six(client(), url);
    }

    private static void six(OkHttpClient client, String url) {
        Request request = new Request.Builder().url(url).build();
        for (int number = 0; number < 6; number++) {
            EventSources.createFactory(client).newEventSource(request, new EventSourceListener() {});
        }
    }

    /** The library does not reconnect. */
    static class Follower extends EventSourceListener {
        private final ScheduledExecutorService later = Executors.newSingleThreadScheduledExecutor();
        private final OkHttpClient client;
        private final String url;
        private volatile String lastEventId;

        Follower(OkHttpClient client, String url) {
            this.client = client;
            this.url = url;
        }

        void open() {
            Request.Builder request = new Request.Builder().url(url);
            if (lastEventId != null) {
                request.header("Last-Event-ID", lastEventId);
            }
            EventSources.createFactory(client).newEventSource(request.build(), this);
        }

        @Override
        public void onEvent(EventSource source, String id, String type, String data) {
            lastEventId = id;
            Main.received(id, type, data);
        }

        @Override
        public void onClosed(EventSource source) {
            later.schedule(this::open, 2, TimeUnit.SECONDS);
        }

        @Override
        public void onFailure(EventSource source, Throwable error, Response response) {
            int status = response == null ? 0 : response.code();
            if (status == 204) {
                Main.end();
            }
            if (status >= 400 && status < 500) {
                Main.failed(response);
            }
            onClosed(source);
        }
    }
}
