# The public names and their modules. Type checkers and the package itself read this list.

from .config.engines import EPIE as EPIE
from .config.engines import LSQML as LSQML
from .config.engines import PIE as PIE
from .config.engines import RAAR as RAAR
from .config.engines import RPIE as RPIE
from .config.engines import DifferenceMap as DifferenceMap
from .config.engines import Gradient as Gradient
from .config.engines import NetworkEngine as NetworkEngine
from .core.errors import PtychoError as PtychoError
from .core.progress import ProgressObserver as ProgressObserver
from .data.orientation import Orientation as Orientation
from .data.orientation_search import OrientationSearch as OrientationSearch
from .data.orientation_search import apply_orientation as apply_orientation
from .data.reconstruction import Reconstruction as Reconstruction
from .data.scan import Scan as Scan
from .engines.orientation import find_orientation as find_orientation
from .engines.pipeline import Pipeline as Pipeline
from .io.reconstruction import load_reconstruction as load_reconstruction
from .io.scan import load_scan as load_scan
from .io.scan import save_scan as save_scan
from .models.saved_model import Bundle as Bundle
from .models.saved_model import Model as Model
from .models.saved_model import load_bundle as load_bundle
from .models.saved_model import load_model as load_model
from .simulation.scan import simulate_scan as simulate_scan
from .training.fit import fit as fit

__version__: str
