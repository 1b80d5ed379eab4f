import redis
from main import line


def publish(url, prefix):
    """Publishes with the library's defaults."""
    client = redis.Redis.from_url(url)

    def one(kind, value):
        name = f"redis-py.{kind}"
        try:
            client.publish(prefix + name, value)
        except redis.DataError:
            line(f"{name}\trefused by the library")

    one("text", "hello")
    one("envelope", '{"event":"price","data":10}')
    one("object", {"event": "price", "data": 10})
    one("number", 42)
    one("boolean", True)
