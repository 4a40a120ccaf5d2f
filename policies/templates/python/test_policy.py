import unittest

from policy import LeastWork
from signalbox import Costs, tried

# Two workers: the first has 20 of the prompt's 40 blocks and a request, the second neither.
COUNTS = {"overlap-device": [20, 0], "prefill-tokens-all": [32, 0], "requests-all": [1, 0]}
REQUEST = {"prompt_blocks": 40, "block_size": 16}


class TestPolicy(unittest.TestCase):
    def test_a_worker_that_holds_the_prompt_costs_less_unless_requests_weigh_more(self):
        self.assertEqual(tried(LeastWork(), "", REQUEST, counts=COUNTS), Costs([23.0, 40.0]))
        settings = '{"request_weight": 100}'
        self.assertEqual(tried(LeastWork(), settings, REQUEST, counts=COUNTS), Costs([122.0, 40.0]))

    def test_a_column_that_the_policy_does_not_name_is_an_error_that_names_it(self):
        class Forgetful(LeastWork):
            counts = ["overlap-device", "requests-all"]

        with self.assertRaisesRegex(KeyError, "prefill-tokens-all"):
            tried(Forgetful(), "", REQUEST, counts=COUNTS)


if __name__ == "__main__":
    unittest.main()
