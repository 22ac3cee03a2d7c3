# The public names of the package, and the only list of them: `__init__` loads each from its module when it is asked for.
from dim_jax.batching import Source as Source
from dim_jax.data.dataset import Dataset as Dataset
from dim_jax.data.example import Example as Example
from dim_jax.datasets.prepare import prepare as prepare
from dim_jax.designer.choice import DesignerSpec as DesignerSpec
from dim_jax.designer.clients import ChatDesigner as ChatDesigner
from dim_jax.designer.design import write_blueprint as write_blueprint
from dim_jax.designer.local import LocalDesigner as LocalDesigner
from dim_jax.edit_result import EditResult as EditResult
from dim_jax.edit_result import read_metadata as read_metadata
from dim_jax.errors import InputError as InputError
from dim_jax.pipeline import EditPipeline as EditPipeline
from dim_jax.pipeline import GeneratePipeline as GeneratePipeline
from dim_jax.processing.pictures import open_picture as open_picture
from dim_jax.publishing.push import push_to_hub as push_to_hub
from dim_jax.sampling import Sampler as Sampler
from dim_jax.serve.engine import Engine as Engine
from dim_jax.session import EditSession as EditSession
from dim_jax.settings import Settings as Settings
from dim_jax.weights.convert import assemble as assemble
from dim_jax.weights.convert import convert as convert
from dim_jax.weights.opening import open_weights as open_weights

__version__: str
__all__: list[str]
