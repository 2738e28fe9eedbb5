"""Is the Hugging Face hub within reach?

The hub's own libraries ask six times and wait ten seconds each time: behind a network that swallows every question they
hang for minutes.  So we ask once, wait a few seconds, and let them look into their cache alone if nothing answers.
"""

import contextlib
import http.client
import sys
import threading
import urllib.error
import urllib.request

PATIENCE = 5.0  # seconds


def reachable():
    """True if the hub answers, whatever it answers, within PATIENCE seconds; at once False in offline mode.

    The package huggingface_hub must be installed.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE)
        except urllib.error.HTTPError:  # an answer all the same
            pass
        except OSError as error:
            # Certificates are left to the hub's library: it may know others than Python does.
            if "SSL" not in repr(error):
                return
        except (ValueError, http.client.HTTPException):  # HF_ENDPOINT is no address, or no web server answers there
            return
        answers.append(True)

    # A thread, because looking up the address has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)


@contextlib.contextmanager
def cache_only():
    """Within this, the hub's libraries look into their cache and ask nobody."""
    from huggingface_hub import constants

    places = [constants] + [sys.modules["datasets"].config] * ("datasets" in sys.modules)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before):
            place.HF_HUB_OFFLINE = value
